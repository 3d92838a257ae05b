"""Measures what the shortcuts save: suites that anyone can run from a checkout.

    python -m benchmarks                    lists the suites, and how long they take
    python -m benchmarks forward            runs one: a table, a JSON file, a picture
    python -m benchmarks compare A B        two JSON files of one suite, row by row

Compilation is timed separately. The compared programs run in turns in one process, so that a slower
machine slows all of them equally. Each run is waited for, and all times are in the file. The
sentences under a table follow from its numbers.
"""
