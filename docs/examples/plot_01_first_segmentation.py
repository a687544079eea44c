"""
First segmentation
==================

Segment one scan with a library of six atlases.
"""

import atlasseg

library = atlasseg.read_library("../../sample_data/atlases")
print(library)
