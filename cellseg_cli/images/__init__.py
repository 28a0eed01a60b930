"""What comes in: fields found, one field decoded and normalised, and its truth."""
