"""The layouts in which labelled sounds lie on a disk: each tells its classes and clips without reading a sound."""
