"""Names that several parts of the package share."""

POOLED = "pooled"  # the vector that a classifier's last layer reads, among the layers whose features are kept
