#!/bin/sh
# Makes the files of docker-compose.yml's secrets, each once: what is there stays as it is.
#
#   sh docker/secrets.sh [FOLDER]        by default ./secrets, as the variable SECRETS has it
#
# Containers see each file as it lies here, and their users have numbers of their own: every file can be read by all who
# reach it, and the folder lets nobody but its owner in.
set -eu
umask 022

folder=${1:-${SECRETS:-secrets}}
mkdir -p "$folder"
chmod 700 "$folder"

# as many random characters of base64, of which + and / become - and _: 22 have 128 bits, 43 have 256
random() {
    head -c 64 /dev/urandom | base64 | tr -d '\n=' | tr '+/' '-_' | cut -c "1-$1"
}

# small letters and digits
plain() {
    head -c 512 /dev/urandom | base64 | LC_ALL=C tr -dc '0-9a-z' | cut -c "1-$1"
}

# the text of stdin, unless the file is there: all of it or nothing
keep() {
    file=$folder/$1
    if [ -e "$file" ]; then
        cat >/dev/null
        echo "$file is there and stays"
    else
        cat >"$file.new"
        chmod 444 "$file.new"
        mv "$file.new" "$file"
        echo "$file"
    fi
}

printf 'acmix_%s_%s\n' "$(plain 8)" "$(random 43)" | keep admin_key
random 43 | keep database_password
random 43 | keep broker_password
random 43 | keep metrics_token
random 22 | keep grafana_password
plain 20 | keep s3_access_key
random 43 | keep s3_secret_key
keep s3_config <<END
{"identities": [{"name": "acmix", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
  "credentials": [{"accessKey": "$(cat "$folder/s3_access_key")", "secretKey": "$(cat "$folder/s3_secret_key")"}]}]}
END
