"""The HTTP state: webhook, REST, event streams, metrics, and the panel.

The one rule: no rule lives here. These modules check the sender and the form of a request; its
effect is that of a function of the schema pgcoord, called through `pgcoord.database`.
"""
