"""The calls of 2014 against their rules. Each test was written from the rule, not from the code."""
