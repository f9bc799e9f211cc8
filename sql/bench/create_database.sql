-- template0: nobody can be connected to it, which would make this fail.
create database {} template template0
