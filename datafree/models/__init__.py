"""Networks: classifiers, the reusable generator, and what reads features off any of them."""
