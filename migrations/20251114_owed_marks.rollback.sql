-- Takes the marks away.
update generation_sessions s set holds = null where s.holds;
