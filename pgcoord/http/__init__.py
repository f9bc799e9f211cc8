"""The HTTP state: webhook, REST, event streams, metrics, and the panel.

The one rule: no rule lives here. A request is checked for who sends it and whether it can be read;
what it does is a function of the schema pgcoord, called through `pgcoord.database`.
"""
