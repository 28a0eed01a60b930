"""What people look at: pictures of images, embeddings and label images."""

from __future__ import annotations
