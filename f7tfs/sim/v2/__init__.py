"""The FirecREST v2 server (2.5.7) over the simulator's folder, scheduler and object store.

Written from v2 FACTS and its transcripts; the section signs in this package mean those FACTS.
"""
