"""From records to tables, figures and a report; imports no torch."""
