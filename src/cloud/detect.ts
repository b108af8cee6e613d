import {readFileSync} from 'node:fs';

export type CloudName = 'aws' | 'gce' | 'azure';

/** A field of the firmware's tables (DMI) by its file in /sys/class/dmi/id; '' when there is none. */
export type ReadDmi = (field: string) => string;

/** Azure's own mark; Hyper-V elsewhere has the same vendor. */
const azureTag = '7783-7084-3265-9085-8269-3286-77';

/** Pure. What anybody may read: nothing is sent to find out, as elsewhere 169.254.169.254 may be anyone's. */
export function detectCloud(read: ReadDmi): CloudName | undefined {
	if (read('sys_vendor') === 'Amazon EC2' || /\.amazon$/.test(read('bios_version'))) return 'aws';
	if (read('product_name') === 'Google Compute Engine') return 'gce';
	if (read('chassis_asset_tag') === azureTag) return 'azure';
	return undefined;
}

export const readDmi: ReadDmi = field => {
	try {
		return readFileSync(`/sys/class/dmi/id/${field}`, 'latin1').trim();
	} catch {
		// A machine without firmware tables, such as a container.
		return '';
	}
};
