"""Tests of `userfault.mman` against the rules of 2014, in three sections; the first line of a conformance file names its own.

B1, `madvise(MADV_USERFAULT)`: test_madvise, test_mappings, test_resolvers, test_fork_policy. B2, `remap_anon_pages`: test_remap.
B3, the descriptor: test_descriptor, test_register, test_switching. The same rules as a program: `userfault.testing.model2014`.
"""
