import {diskReader} from '../../config/index.ts';
import {reasonOf} from '../../errors.ts';
import {examineToken} from '../join/token.ts';
import {hasCertificate} from './certificate.ts';
import {type Finding, fail, ok, skip, warn, withConfig} from './types.ts';

/** Whether the bootstrap token could buy a certificate: form, expiry, audience, workload. */
export const token = withConfig('token', async (config, patient) => {
	if (config.identity.source.kind !== 'control-plane')
		return [skip(`certificates come from ${config.identity.source.kind}, not by token`)];
	const {tokenPath, tokenProgram} = config.controlPlane;
	if (tokenProgram.length > 0)
		return [skip(`the agent gets them from ${tokenProgram[0]}, run as its user; "onramp status" tells of failures`)];
	const {claims, problems} = look(tokenPath, config, patient.now);
	const until = claims?.expiresAt ? `until ${claims.expiresAt.toISOString()}` : 'without an end';
	if (problems.length === 0) return [ok(`${claims?.subject ?? 'no subject'}, ${until}`)];
	// With a valid certificate it may never be needed again.
	const isNeeded = !hasCertificate(patient, config);
	return problems.map(({severity, place, message, remedy}): Finding => {
		const text = `${place}: ${message}`;
		return severity === 'error' && isNeeded ? fail(text, remedy) : warn(text, remedy);
	});
});

function look(path: string, config: Parameters<typeof examineToken>[2], now: Date): ReturnType<typeof examineToken> {
	const unread = (message: string) => ({
		claims: undefined,
		problems: [
			{
				severity: 'error' as const,
				place: path,
				message,
				remedy: 'onramp join BUNDLE, or onramp join --token-file FILE; the agent has to be able to read it',
			},
		],
	});
	try {
		const bytes = diskReader.read(path, 65_536);
		return bytes ? examineToken(Buffer.from(bytes).toString('latin1'), path, config, now) : unread('there is no token');
	} catch (error) {
		return unread(reasonOf(error));
	}
}
