import {AgentError} from '../errors.ts';

/** Stands for the look-up of a server that does not run. @throws AgentError `dns.off` */
export function refuseLookup(): never {
	throw new AgentError('dns.off', 'look up a name: names are not answered on this machine (dns.mode is off)', {
		hint: 'set dns.mode to capture, or make the bundle with --capture-dns=true',
	});
}
