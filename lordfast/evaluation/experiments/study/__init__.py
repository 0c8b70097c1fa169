"""One general experiment, the study: datasets x identities x seeds x attacks x budgets x proportions x methods.

Table I, Fig. 7 and the gate's examination are settings of it.
"""
