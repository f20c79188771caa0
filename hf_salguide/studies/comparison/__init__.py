"""Comparisons: methods against plain training over seeds, run, recorded and analysed."""
