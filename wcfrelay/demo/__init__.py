"""Two small SOAP services that ``wcfrelay demo`` puts behind a relay, written as users write theirs."""
