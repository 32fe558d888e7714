"""`python -m service.healthy [URL]`: exit status 0 if the API answers there. For a container's own check of itself."""

import sys
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

DEFAULT_URL = "http://127.0.0.1:8000"
ANSWER_SECONDS = 4


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL
    try:
        # no proxy of the environment's: this is our own machine
        build_opener(ProxyHandler({})).open(f"{url}/healthz", timeout=ANSWER_SECONDS).close()
    except (OSError, HTTPException) as error:  # of which every answer but 2xx is one
        sys.exit(f"{url} does not answer: {error}")


if __name__ == "__main__":
    main()
