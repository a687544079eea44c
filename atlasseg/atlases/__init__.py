"""Atlases: libraries of labelled scans, and what is wrong with one."""
