import {loadKept} from '../../cloud/kept.ts';
import {type Candidate, lookAtNetwork, rankAddresses} from '../../config/index.ts';
import {ok, withConfig} from './types.ts';

/** Which address names our WorkloadEntry, and why that one. */
export const addresses = withConfig('address', async ({stateDir, workload, address}) => {
	const [own = ''] = workload.addresses;
	const ranked = rankAddresses({...lookAtNetwork(), cloudAddress: () => loadKept(stateDir)?.facts.address}, address);
	const others = ranked.filter(candidate => candidate.address !== own).map(describe);
	const rest = others.length > 0 ? `; then ${others.join(', ')}` : '';
	const chosen = ranked.find(candidate => candidate.address === own);
	if (chosen && !address.isFixed) return [ok(`${describe(chosen)}${rest}`)];
	// Right where addresses are translated on the way.
	const where = chosen ? ` (${chosen.interface})` : own.startsWith('127.') ? '' : ', on no interface of this machine';
	return [ok(`${own}${where}: set${rest}`)];
});

const describe = ({address, interface: name, why}: Candidate): string => `${address} (${name}): ${why}`;
