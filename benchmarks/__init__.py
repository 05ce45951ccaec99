"""A package by name: old releases of pyarrow install one of the same name, which would be found instead."""
