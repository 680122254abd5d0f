"""The same questions put to userfault and to what people use instead of it, and a page with the answers.

Each measure is taken in a fresh process that loads one contender and nothing else, so that its first answer and its peak
memory are its own. `contenders` says who takes part, `child` holds what such a process runs, `playing` has them take turns,
`verdicts` says who won, `page` draws it all.
"""
