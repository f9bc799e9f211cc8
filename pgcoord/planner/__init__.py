"""From a feature to its phases.

A feature (title, description, hours) and the list of its repository's files become a structure
(`structure`: pieces of work, each of a layer), the structure becomes phases with edges (`phases`),
these get their prompts (`prompts`) and are weighed (`analysis`). All that is pure: the same input
gives the same plan. What reads and runs stands beside it: `repository`, `command`, and `planning`,
which puts all of them together.
"""
