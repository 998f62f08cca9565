"""What runs leave behind: records, how they are written, found, shown and kept valid."""
