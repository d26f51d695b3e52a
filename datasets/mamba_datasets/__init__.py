"""Data in: series, images, volumes and sound; readers, integrity checks and small real samples."""
