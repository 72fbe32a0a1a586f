"""Images beside measurements: tables, molecules, cells, medicine, astronomy."""
