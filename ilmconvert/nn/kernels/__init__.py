"""Passes over the large tensor: :mod:`dispatch` takes the fastest of the files that fits the device and the layout."""
