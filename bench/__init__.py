"""Benches: a scenario goes in, a JSON file comes out, and a table is made of that.

Each row of a table pairs userfault with a C program of `bench/floor` that does the same and nothing else. Both play
their rounds in turn within one run, because only numbers of one run can be compared.

Here is what needs the repository and a C compiler. What compares with other packages is `userfault.rivals`: it is installed, and
`userfault bench --report DIR` runs it; the benches here use its figures.
"""
