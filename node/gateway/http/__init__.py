"""What all APIs share of HTTP: limits, errors, hanging up."""
