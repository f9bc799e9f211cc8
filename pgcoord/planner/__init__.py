"""The planner: from the description of a feature to its phases.

A feature (title, description, hours) and the list of its repository's files become a structure
(`structure`: pieces of work, each of a layer), the structure becomes phases with edges (`phases`),
these get their prompts (`prompts`) and are analysed (`analysis`). All these functions are pure: the
same input gives the same plan. `repository` and `command` read files and run programs; `planning`
combines them all.
"""
