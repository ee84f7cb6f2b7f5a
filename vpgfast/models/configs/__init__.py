"""The settings of each method, one file a method, apart from the networks: ``--help`` lists them without torch."""
