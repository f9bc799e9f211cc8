drop database if exists {} with (force)
