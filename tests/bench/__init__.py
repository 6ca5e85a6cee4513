"""What reading costs, measured on real mounts: every row of "Must show", its number and its bar.

`./scripts/bench [ROW…]` runs it. A performance figure is a ratio of two things measured in turn in
one run, the median of several rounds: a busy machine changes both.
"""
