"""The explorer's views: inputs, a public call, a chart."""
