"""The architectures, each of width k, alone or with all trials of an arm in one network. See ``build`` first."""
