select epoch
from pgcoord_private.lead('bench', 0, 'bench', '/', '[{
    "name": "bench", "default": true, "reports": false, "max_attempts": 1,
    "retry_delay_seconds": 0, "retry_lost": false, "timeout_seconds": null
}]')
