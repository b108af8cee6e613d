import type {CaptureDeps} from './capture.ts';
import {evaluate} from './evaluate.ts';
import {answersTcp} from './listeners.ts';
import type {Plan} from './rules.ts';

export interface Through {
	readonly isGood: boolean;
	/** Where nothing was sent, nothing is said against it. */
	readonly isSent: boolean;
	readonly text: string;
}

/** Documentation addresses (RFC 5737, 3849): nobody answers there, so an answer is Envoy's. */
const destinations = ['192.0.2.1', '2001:db8:ffff::1'] as const;
/** As Istio's own self-test. */
const port = 15_002;

/** Sends a real first packet that ought to be captured, and sees whether Envoy takes it. */
export async function probeThrough({config}: CaptureDeps, plan: Plan): Promise<readonly Through[]> {
	const results: Through[] = [];
	for (const destination of destinations) {
		const name = destination.includes(':') ? 'IPv6' : 'IPv4';
		const packet = {
			direction: 'out',
			protocol: 'tcp',
			destination,
			port,
			interface: 'eth0',
			uid: process.getuid?.() ?? 0,
			gid: process.getgid?.() ?? 0,
		} as const;
		if (evaluate(plan, packet).fate !== 'captured') {
			results.push({
				isGood: true,
				isSent: false,
				text: `${name}: NOT checked whether packets reach Envoy: no packet was sent, as the rules do not capture one to ${destination} from this user (uid ${packet.uid})`,
			});
			continue;
		}
		const isAnswered = await answersTcp(destination, port);
		// Where Envoy has no IPv6 listener, a refusal is what is planned.
		if (isAnswered)
			results.push({isGood: true, isSent: true, text: `${name}: a packet to ${destination} reached Envoy`});
		else if (name === 'IPv6' && !(await answersTcp('::1', config.outboundPort)))
			results.push({isGood: true, isSent: true, text: `${name}: Envoy has no listener, connections are refused`});
		else
			results.push({
				isGood: false,
				isSent: true,
				text: `${name}: a packet to ${destination} did not reach Envoy at port ${config.outboundPort}`,
			});
	}
	return results;
}
