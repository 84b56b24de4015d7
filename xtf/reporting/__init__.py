"""What people look at: reports, figures, the explorer, dashboards."""
