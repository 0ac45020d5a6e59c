"""Install the kit's packages, and bundle them for where there is no Internet."""
