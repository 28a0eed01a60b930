"""The batch: plan, stream, resume, failures, events.

Every stage is the same pass over the fields of one store: plan what is to be
done, do it on a bounded number of threads, write each field and mark it done
last, tell the terminal by events, leave a run record.  The rooms below know
one field at a time; only this one knows that there are many.
"""

from __future__ import annotations
