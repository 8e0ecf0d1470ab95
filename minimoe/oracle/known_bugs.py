"""Known bugs of others, each a small wrong variant of a paper's code, kept apart from the papers.

A bug that concerns several papers is one Variant in each, all of one name. What is reported
somewhere may be open, or a question: it is cited as a report. Of names that begin with N nobody
reported anything: they were found here, by holding released code to a paper.
"""
from minimoe.oracle import wrong_balance, wrong_products, wrong_routing

KNOWN_BUGS = [*wrong_balance.BUGS, *wrong_routing.BUGS, *wrong_products.BUGS]
