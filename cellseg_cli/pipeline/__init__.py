"""The batch: find the fields, plan, forecast, do each stage, resume, record.

Every stage is the same pass over the fields of one store: plan what is to be
done, hand the work to :mod:`cellseg_cli.engine`, write each field and mark it
done last, tell the terminal by events, leave a run record.  Other rooms know
one field at a time; only this one and the engine know that there are many.
"""

from __future__ import annotations
