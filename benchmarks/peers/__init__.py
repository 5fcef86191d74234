"""What somebody could run instead of the recorder, each as its users would tune it, in one file each.

Each is a process: `python -m benchmarks.peers.NAME --records N`, with Stepstream's settings in the
environment. They write the same rows to the same table. None checks what an event refers to, keeps bad events
apart, or knows whether the topic or the database was replaced.
"""
