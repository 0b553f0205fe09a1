"""The numbers in the documents: every table and sentence with results is written from experiments/results."""
