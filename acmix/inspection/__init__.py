"""Looking into data that someone uploaded: unpacked, every image decoded, counted and shown, by a confined process."""
