"""Who carries out the work on the fields of a run, and how: tasks, threads, processes, clusters.

A stage says what is to be done to a field (:class:`~cellseg_cli.engine.tasks.Work`); this room
does it for any number of fields, on threads of this process or on any dask cluster, keeps a
bounded number of them in flight, and turns what goes wrong with one into an outcome.  It knows
nothing of networks, clustering or stores beyond a row of the list of fields.
"""

from __future__ import annotations
