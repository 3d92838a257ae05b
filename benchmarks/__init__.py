"""What the shortcuts buy, measured: suites that anyone can rerun, from a checkout.

    python -m benchmarks                    what there is, and how long it takes
    python -m benchmarks forward            runs one: a table, a JSON file, a picture
    python -m benchmarks compare A B        two JSON files of one suite, row by row

Compilation is timed apart. What is compared runs by turns, in one process, so that a machine that
slows down slows all of it alike; every run is waited for, and all their times are in the file. What
is printed under a table follows from its numbers.
"""
