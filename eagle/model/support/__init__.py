"""Which targets are supported and how they are loaded: properties, adapters, releases, prepacked linear layers."""
