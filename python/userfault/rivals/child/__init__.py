"""What runs in the process of one contender.

These files are run by their path, not as modules of the package: importing `userfault` would count against a rival's first
answer and memory. So they import the standard library, NumPy, each other by bare name, and the contender when it is asked for.
"""
