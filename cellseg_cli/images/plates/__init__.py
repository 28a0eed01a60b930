"""Exports of plate readers with a file per plane: which files make one field of view.

What a file is follows from its name and folder (:mod:`.formats`, or a pattern of the user:
:mod:`.custom`); what should be there, from the other files of its plate and from what the
reader has written beside them (:mod:`.metadata`).  Images are never opened.
"""
